"""Pictures of results, drawn from what the stages wrote: a change here makes no stage stale."""
