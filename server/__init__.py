"""HTTP front: routes, auth, errors, streaming; talks to the engine only through engine.api."""
