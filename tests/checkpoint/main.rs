//! Checkpoints on disk.

mod config_json;
mod copies;
mod damaged;
mod files;
mod foreign_formats;
mod formats;
mod int8_file;
mod model_types;
mod other_programs;
mod refused;
mod which_head;
