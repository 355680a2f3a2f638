"""The Kedro pipelines: thin wiring around the library."""
