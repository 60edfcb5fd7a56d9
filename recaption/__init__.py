"""New captions for old images: versioned prompts, engines that answer them, the step that stores them."""
