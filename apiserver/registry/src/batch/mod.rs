//! Kinds of `batch/v1`.

mod cronjob;
mod job;

pub(crate) use cronjob::KIND as CRON_JOB;
pub(crate) use job::KIND as JOB;
