"""Extensions as model folders that other programs load, verified in a process without this
package."""
