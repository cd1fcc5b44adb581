"""What runs as a Ray actor or inside one: classifier pool, label buffer, models, API clients."""
