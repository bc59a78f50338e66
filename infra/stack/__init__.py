"""PostgreSQL, S3, MLflow, Prefect and a worker as plain processes on loopback. `python -m infra.stack --help`."""
