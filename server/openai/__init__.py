"""OpenAI's API: request types, conversion to engine requests, rendering of answers."""
