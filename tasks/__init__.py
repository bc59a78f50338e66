"""What the flows are made of: workspaces, DVC stages, tracking and the registry. Nothing here loads a model."""

from slimtts.redaction import redact_everything

# Here, because workers open flows by their files: whatever logs afterwards, Prefect and MLflow too, tells no secret.
redact_everything()
