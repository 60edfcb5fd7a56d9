"""Runs every benchmark, one after the other: `make bench`."""

from benchmarks import dataset_io

if __name__ == "__main__":
    dataset_io.main()
