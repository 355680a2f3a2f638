"""Many runs that differ in a few parameters, on the cores, the GPU or the cluster that is there.

`config` is what a sweep may say, `variants` crosses its axes, `state` is what each variant's folder
records, `engine` hands the variants to Dask workers and `display` shows how far they are. Only
`project`, `tracking` and `variant_run` know of Kedro and MLflow; `driver` joins all of them into
``kedro sweep run``.
"""
