"""What a table of times must say of the machine, and nothing that names it."""

import os
from importlib.metadata import version

PACKAGES = ("numpy", "scipy", "cvxpy", "scs", "clarabel")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.pop("node", None)
    machine_info["versions"] = {name: version(name) for name in PACKAGES}
    machine_info["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine_info["blas_threads"] = os.environ.get("OMP_NUM_THREADS", "all cores")
