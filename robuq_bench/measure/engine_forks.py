"""What the processes of a measurement begin with: imported once, by the server that they are forks of."""

from importlib import import_module

from robuq_bench.devices import hidden

with hidden():
    import_module("robuq_bench.measure.engine_worker")
