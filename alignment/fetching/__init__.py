"""Where everything comes from: pins, mirrors, the hub, downloads, the base model."""
