# Airflow with this provider. The slim image has Airflow's core alone: everything else comes from constraints.txt, so what
# runs here is what the tests run.
ARG AIRFLOW=apache/airflow:slim-3.3.2-python3.12

FROM ${AIRFLOW} AS build
COPY --chown=airflow:0 constraints.txt pyproject.toml README.md LICENSE /tmp/duckling/
COPY --chown=airflow:0 duckling_provider /tmp/duckling/duckling_provider
WORKDIR /tmp/duckling
RUN pip install --no-cache-dir --constraint constraints.txt hatchling && \
    pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /tmp/wheel .

FROM ${AIRFLOW}
USER root
# Volumes that are mounted here begin with this owner; the group is what lets containers run as any user.
RUN install --directory --owner=airflow --group=0 --mode=2770 /duckling /duckling/data /duckling/host
USER airflow
COPY --chown=airflow:0 constraints.txt /tmp/constraints.txt
COPY --from=build --chown=airflow:0 /tmp/wheel /tmp/wheel
RUN wheel=$(echo /tmp/wheel/*.whl) && \
    pip install --no-cache-dir --constraint /tmp/constraints.txt "duckling-provider[cluster] @ file://${wheel}" && \
    rm -rf /tmp/wheel
# What would otherwise be found out when it starts.
RUN python -c "import duckling_provider.plugins.duckling, airflow.providers.celery.executors.celery_executor, \
airflow.providers.fab.auth_manager.fab_auth_manager, asyncpg, psycopg2"
COPY --chown=airflow:0 dags /opt/airflow/dags
