#!/bin/sh
# Run once by the postgres image, for a new volume: a role and a database of its own for MLflow and for Prefect.
set -eu
create() { # name of role and database, name of the variable with its password
  # psql reads the variable itself: neither a list of processes nor the server's log shows the password.
  psql --set ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname postgres --set name="$1" <<SQL
SET log_min_error_statement = panic;
\getenv password $2
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}
create mlflow MLFLOW_DB_PASSWORD
create prefect PREFECT_DB_PASSWORD
