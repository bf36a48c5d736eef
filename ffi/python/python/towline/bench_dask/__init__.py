"""``python -m towline.bench_dask``: how fast Dask is over Towline, beside its own sockets, on this machine."""
