"""The demo model's skills: seeded generators of dialogues, of which a tenth was held out of its training."""
