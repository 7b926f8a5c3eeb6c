"""The doors over HTTP: durable jobs, the worker processes that carry them out, and the forms of several clients."""
