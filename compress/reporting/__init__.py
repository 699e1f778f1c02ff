"""Shows a bundle's history: `report.html`, its plots, the tables of the terminal."""
