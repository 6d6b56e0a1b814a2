//! A recorder of everything that devices signal, for tests.
