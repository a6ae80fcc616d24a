//! Stores that the real Nix made, against what the real Nix says of them. Runs where `nix-store` is installed; in CI
//! (`CI=true`) it must be.
