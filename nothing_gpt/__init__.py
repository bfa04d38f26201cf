"""Nothing-GPT: turns an SFT adapter and a file of prompts into a measurably better adapter, and can prove it."""
