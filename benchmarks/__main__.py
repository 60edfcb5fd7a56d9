"""Runs every benchmark, one after the other: `make bench`."""

from benchmarks import audit, dataset_io, filtering, generation, packing, recaption, serving, training_step

if __name__ == "__main__":
    dataset_io.main()
    audit.main()
    filtering.main()
    recaption.main([])
    training_step.main([])
    packing.main([])
    generation.main([])
    serving.main([])
