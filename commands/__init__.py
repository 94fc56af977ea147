"""Commands around the pipeline, which `make` lists; no stage of dvc.yaml is here."""
