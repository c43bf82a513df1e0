"""The laboratory: plan, runner, store and executors. Knows no particular experiment."""
