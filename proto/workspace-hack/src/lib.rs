//! Holds no code: its manifest gives every dependency one feature set (cargo-hakari).
