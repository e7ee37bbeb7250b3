"""ComfyUI entry of the pack. The nodes follow; outside ComfyUI this module does nothing."""
