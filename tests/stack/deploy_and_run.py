"""`deploy_and_run.py ENTRYPOINT PARAMETERS ENVIRONMENT`: deploys to the pool `cpu`, prints the id of a finished run.

PARAMETERS of the flow and ENVIRONMENT of its process are JSON.
"""

import json
import sys
from pathlib import Path

from prefect import flow
from prefect.deployments import run_deployment

CHECKOUT = Path(__file__).parents[2]

if __name__ == "__main__":
    entrypoint, parameters, environment = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    name = Path(entrypoint.partition(":")[0]).stem
    deployed = flow.from_source(str(CHECKOUT), entrypoint)
    deployed.deploy(name, work_pool_name="cpu", print_next_steps=False)
    run = run_deployment(
        f"{deployed.name}/{name}", parameters=parameters, job_variables={"env": environment},
        timeout=300, poll_interval=0.5,
    )  # fmt: skip
    print(run.id)
