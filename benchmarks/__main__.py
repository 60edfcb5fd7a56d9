"""Runs every benchmark, one after the other: `make bench`."""

from benchmarks import audit, dataset_io

if __name__ == "__main__":
    for benchmark in (dataset_io, audit):
        benchmark.main()
