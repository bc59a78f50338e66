"""The six steps of the pipeline: (params, workspace) -> result."""
