"""What `make` offers around the pipeline; no stage of dvc.yaml is here."""
