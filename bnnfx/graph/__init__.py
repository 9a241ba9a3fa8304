"""The compiler's machinery: tracing, stages and their contracts, the pass runner, questions about a graph.

Passes build on it, pipelines order the passes; it knows neither of them.
"""
