"""The bundled teacher: the small language it speaks and the recipe that trains its parts."""
