"""The replica file: who may touch it, its blocks and logs, and its exchange for a restored one."""
