"""Who runs when and where: requests, scheduling, pages, compiled programs."""
