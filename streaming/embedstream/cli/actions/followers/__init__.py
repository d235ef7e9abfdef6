"""What follows the table: run by a command, or by a stream as its child processes."""
