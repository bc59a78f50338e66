"""One module a command, each with `add_arguments(parser)` and `run(options)`; heavy imports wait inside `run`."""
