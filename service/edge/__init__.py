"""HTTP itself: what is refused before a route is asked, what every answer carries, and how files are sent."""
