"""What a recipe takes before, while and after it is spent: `harmon plan`, and what `harmon simulate` replays."""
