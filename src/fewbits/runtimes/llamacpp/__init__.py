"""llama.cpp's server as a child process."""
