"""All that SFT and DPO share: settings, plan, trainer, checks, run, resume points, curves."""
