"""The page: drawing, pictures and jobs in a browser. It speaks to `/v1` and to nothing else."""
