//! Everything together: the library against the programs that read what it writes.

mod delivery;
