//! it

mod activation;
