"""Host-side scheduling, paging and prefix caching; never imports torch."""
