"""The verbs of the command, a module each: `main(arguments)` reads them, calls the library and prints the result."""
