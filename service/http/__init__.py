"""HTTP itself: what is refused before a route is asked, what every answer carries, what is logged and counted."""
