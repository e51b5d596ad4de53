# Read by the image's entrypoint, once, when the data folder is new. The grants are those of docs/internals/replication.md.
docker_process_sql <<SQL
CREATE USER 'duckling'@'%' IDENTIFIED BY '${MYSQL_DUCKLING_PASSWORD}';
GRANT SELECT, LOCK TABLES ON \`shop\`.* TO 'duckling'@'%';
GRANT SELECT, LOCK TABLES ON \`crm\`.* TO 'duckling'@'%';
GRANT SELECT, LOCK TABLES ON \`inventory\`.* TO 'duckling'@'%';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'duckling'@'%';
SQL
