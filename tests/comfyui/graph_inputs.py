"""Inputs of nodes that several tests give."""

SAMPLER = {"steps": 4, "cfg": 2.5, "sampler_name": "euler_ancestral", "scheduler": "normal"}
DEMO = {"source": "demo (drawn by the pack)", "folder": "", "category": "leather", "defects": ""}
