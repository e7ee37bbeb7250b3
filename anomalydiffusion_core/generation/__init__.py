"""From normal photos and masks to accepted pairs."""
