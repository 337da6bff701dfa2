//! Checkpoints as files on disk.

mod config_json;
mod damaged;
mod files;
mod formats;
mod int8_file;
mod other_programs;
mod refused;
