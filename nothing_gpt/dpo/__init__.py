"""The stages of preference optimisation, one file each; a stage reads the artifact of the one before it."""
